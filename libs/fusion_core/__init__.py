"""What every part of Fusion shares, free of torch: words, states, SQL, money and the trainer's protocol."""
