"""What is remembered of users: kept from the feedback topic by a worker, read by serving once a request."""
