"""Bijections and probability: flows, their transforms and networks, priors, latents, likelihoods."""
