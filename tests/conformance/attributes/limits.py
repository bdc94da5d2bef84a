"""Resource limits, soft and hard, infinite ones too"""
import resource

from case import case, same

NAMES = [name for name in dir(resource) if name.startswith("RLIMIT_")]


@case
def limits():
    lowered = {
        "RLIMIT_CPU": 90_000, "RLIMIT_FSIZE": 1 << 40, "RLIMIT_CORE": 0, "RLIMIT_STACK": 16 << 20,
        "RLIMIT_NPROC": 5000, "RLIMIT_NOFILE": 777, "RLIMIT_MEMLOCK": 1 << 20, "RLIMIT_AS": 1 << 44,
        "RLIMIT_SIGPENDING": 4321, "RLIMIT_MSGQUEUE": 700_000, "RLIMIT_RTTIME": 1_000_000,
    }
    for name, soft in lowered.items():
        hard = resource.getrlimit(getattr(resource, name, None) or 15)[1] if hasattr(resource, name) else None
        if hard is not None and (hard == resource.RLIM_INFINITY or soft <= hard):
            resource.setrlimit(getattr(resource, name), (soft, hard))
    numbers = range(16)
    wanted = [resource.prlimit(0, number) for number in numbers]

    def change():
        soft, hard = wanted[7]
        wanted[7] = (600 + (soft + 1) % 100, hard)
        resource.setrlimit(7, wanted[7])

    yield change
    for number in numbers:
        same(f"limit {number}", resource.prlimit(0, number), wanted[number])
