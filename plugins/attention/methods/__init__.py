"""The methods of sparse attention: each file says which key blocks a block of queries keeps."""
