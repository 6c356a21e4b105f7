"""The ground floor: what every part of qsit shares. It knows no SQL, no Celery, no torch."""
