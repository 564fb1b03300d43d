"""The local stack: an embedded broker, database and model, and the services, supervised."""
