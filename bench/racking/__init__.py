"""What ``bench/rack.py`` needs: boards that misbehave by chance, and a lab of agents to have them in."""
