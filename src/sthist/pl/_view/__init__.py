"""A slide in the browser: what a tile, a colour or a click answers, and the server and page around it."""
