"""What every job needs while it runs: devices and mesh, workdir, checkpoints, stop requests,
watchdog, metrics.

In: a workdir and plain settings. Out: a run that can be stopped, killed, moved and continued.
Checksums stand beside Orbax's own: they find what changed on disk after a save. Trackers are thin
writers of our own, as each service's client is wanted only where it is used.
"""
