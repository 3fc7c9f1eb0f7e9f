"""One file for each library that encoders are loaded with."""
