"""Reports: findings shown, saved and compared."""
