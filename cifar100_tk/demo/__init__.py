"""Demo web page: drop an image to see the network's 32x32 input, its predictions and a class activation map."""
