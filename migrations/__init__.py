"""Alembic migrations, shipped with the package so that an installed qsit can migrate."""
