"""What a node tells an MQTT broker, if its owner says so: off by default, never routing, prompts or activations."""
