"""What all rooms use and is about none of them: errors for people, typed configuration, content hashes, durable files."""
