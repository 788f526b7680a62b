"""The application on several GPUs and machines, by Ray Serve (https://docs.ray.io/en/latest/serve).

Ray routes requests to replicas, each a process with the models, and replaces those that die or say they are unwell.
`RAY_ADDRESS` names a running cluster; without it Ray starts one on this machine.
"""

import os

from fastapi import FastAPI

from escdiff.serving.settings import Settings
from escdiff.serving.web.app import from_environment
from escdiff.support.errors import UserError, reason_of
from escdiff.support.jobs.ray_cluster import import_path

NAME = "escdiff"
LOOK = 5.0  # seconds between looks at a replica's health
_apps: list[FastAPI] = []  # of this process


def build() -> FastAPI:
    """Called by Ray in every replica."""
    _apps.append(from_environment())
    return _apps[-1]


class Replica:
    """A replica: the application, and Ray's health check."""

    def check_health(self) -> None:
        """Raise where the painter cannot paint any more; Ray then replaces the replica."""
        if not all(app.state.service.engine.painter.healthy for app in _apps):
            raise RuntimeError("the painter has stopped, or failed again and again")


def deploy(settings: Settings, host: str, port: int, replicas: int, gpus: float) -> None:
    """Start `replicas` of the application, each with so many GPUs; returns when they answer.

    Raises:
        UserError: Ray is not installed, or cannot be started or reached.
    """
    try:
        import ray
        from ray import serve
    except ImportError:
        raise UserError("--ray needs Ray Serve; pip install 'escdiff[serve,ray]'") from None
    variables = {"PYTHONPATH": import_path(), **settings.to_environment()}
    limits = settings.limits
    deployment = serve.deployment(
        num_replicas=replicas, max_ongoing_requests=2 * (limits.queue + limits.batch), health_check_period_s=LOOK,
        ray_actor_options={"num_gpus": gpus, "num_cpus": 1, "runtime_env": {"env_vars": variables}},
    )  # fmt: skip
    try:
        if not ray.is_initialized():
            cores = {} if os.environ.get("RAY_ADDRESS") else {"num_cpus": max(replicas, os.cpu_count() or 1)}
            ray.init(include_dashboard=False, logging_level="error", log_to_driver=False, **cores)
        serve.start(http_options={"host": host, "port": port})
        serve.run(deployment(serve.ingress(build)(Replica)).bind(), name=NAME, route_prefix="/")
    except Exception as error:  # Ray raises bare ones
        problem = f"Ray Serve cannot be started ({reason_of(error)})"
        raise UserError(f"{problem}; check RAY_ADDRESS, --port, and that the cluster has the GPUs") from error


def stop() -> None:
    """Take the application off the cluster; one that was started here ends."""
    import ray
    from ray import serve

    serve.shutdown()
    ray.shutdown()
