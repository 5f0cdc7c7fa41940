"""Telemetry: metrics, traces, logs. The domain says one verb per fact; what that moves stands here.

==========  =======================================================================================
catalogue   every metric: name, labels, meaning, buckets; nothing else names a metric
handles     series bound once to their labels, which move aioprometheus' own store directly
exposition  the Prometheus text format, with every label value escaped
metrics     `Telemetry`, the domain's probe
reading     reads the metrics back, as sums over their series
recorder    what a node's metrics were in the last minutes, and what it says of itself
overview    what the nodes say of themselves, as one picture of the fleet
console     that picture as JSON, made at most once a second
services    the calls of services, with time and failures; the connections to Redis
queues      what waits for the agents' workers, and who they are
process     CPU, memory, files, the event loop's lag, log lines
tracing     where traces go: OpenTelemetry's exporter, when one is wanted
spans       the domain's tracers: what each span is called and says
logs        loguru's lines and the standard library's, as JSON with ten keys, in one bounded stream
==========  =======================================================================================
"""
