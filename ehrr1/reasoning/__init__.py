"""Write, screen and show reasoning chains."""
