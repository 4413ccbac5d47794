"""This machine: devices, processes, files, installed packages and the version of ms-swift."""
