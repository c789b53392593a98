"""What an app's developer needs to make a bundle. Never imported on the end user's path."""
