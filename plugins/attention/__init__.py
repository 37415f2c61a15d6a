"""Kind "attention": sparse and quantised attention in place of a denoiser's own."""
