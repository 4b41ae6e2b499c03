"""The endpoints of the person on call: what there is to see, what can be done about it, and who did what."""
