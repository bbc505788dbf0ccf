"""How far each latent stands for one factor of the world, and each factor has one latent: six metrics."""
