"""The worker: one loaded Q-SiT model a device, fed with chunks by Celery."""
