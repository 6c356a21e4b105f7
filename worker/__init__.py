"""The worker: Celery processes that each hold one loaded Q-SiT model on one device."""
