"""Every message between Headrace's services, and the configuration that travels with a model."""
