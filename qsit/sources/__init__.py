"""What a user names: folders, files, lists of them, and places in S3; how they are listed and opened."""
