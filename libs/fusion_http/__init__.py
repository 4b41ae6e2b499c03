"""What every HTTP service of Fusion answers alike: problems, ids of requests, bodies checked whole, pages, limits."""
