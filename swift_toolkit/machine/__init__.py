"""The computer: devices, processes, files, installed packages and the versions of ms-swift."""
