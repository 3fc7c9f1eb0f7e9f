"""Images opened, and windows of them read."""
