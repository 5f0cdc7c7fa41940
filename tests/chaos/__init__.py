"""Nothing is lost: a fleet under a seeded schedule of faults, and a checker over what was seen.

    make chaos                        about seven minutes; ends with a table
    make chaos ARGS="--seed 7"        the same schedule again (what the machine does in it is not)

- `faults` breaks a `fleet` (nodes, workers, Redis, and between them a `proxy` each) in turn;
- meanwhile a `crowd` of clients (`follower`) talks with an agent that counts (`support.witness`);
- each client writes down every frame that it sent and saw (`tape`), and the agent its starts;
- `checker` is a pure function over these, and proves the guarantees or names what broke them;
- `audit` looks at the metrics and at the keys in Redis when all is quiet again.
"""
