"""Services of a running job: devices and mesh, workdir, checkpoints, stop requests, watchdog,
metrics.

In: a workdir and plain settings. Out: a run that can be stopped, killed, moved and continued. Our
checksums, beside Orbax's, find changes on the disk after a save. Trackers are our own thin writers,
so that a service's client is loaded only if it is used.
"""
