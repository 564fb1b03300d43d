"""What serving does with the domain and the ports: requests, their settlement, recovery."""
