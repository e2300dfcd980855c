"""The lab of compose.yaml as processes of this machine, each image a folder."""
