"""cnx, ControlNet experiments: train ControlNets on Stable Diffusion and find out what makes that training work."""
