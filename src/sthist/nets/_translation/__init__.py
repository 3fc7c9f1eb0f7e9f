"""Networks and losses of image translation."""
