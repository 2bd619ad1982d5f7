"""What is DeepLab's own: the network, its losses, schedule, initial weights and configuration."""
