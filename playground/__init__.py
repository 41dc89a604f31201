"""The playground: robots, transforms, policies, the shared worker, views and the page."""
