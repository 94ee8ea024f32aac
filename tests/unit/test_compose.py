"""docker-compose.yml, .env and the Dockerfile without Docker: that they say what they promise."""

from __future__ import annotations

import importlib.util
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from services.simulator.shop_settings import ShopSettings
from shared.adapters.kafka_reader import topic_configs
from shared.adapters.settings import ConsumerSettings, HttpSettings, KafkaSettings, RetrainerSettings
from tests import compose_files, security_examples
from tests.compose_files import COMPOSE, ONE_SHOT, OURS, services, variables, versions
from tests.readme_parts import CLASSES
from tests.servers import ROOT

DOCKERFILE = (ROOT / "deploy" / "Dockerfile").read_text()
SETTINGS = {name.upper(): cls for _, cls in CLASSES for name in cls.model_fields}
EVERY = sorted(services())
OF_OURS = sorted(name for name, service in services().items() if service["image"].startswith(f"{OURS}:"))
OTHERS = sorted(set(EVERY) - set(OF_OURS))
BYTES = {"m": 1 << 20, "g": 1 << 30, "mb": 1 << 20, "gb": 1 << 30}


def in_bytes(text: str) -> int:
    number, unit = re.fullmatch(r"(\d+)([a-z]+)", text).groups()
    return int(number) * BYTES[unit]


def test_the_services_of_the_issue_are_there():
    expected = {"kafka", "redis", "topics", "consumer", "recommender", "retrainer", "prometheus", "grafana", "shoppers"}
    assert set(EVERY) == expected
    assert {name: services()[name]["profiles"] for name in EVERY if "profiles" in services()[name]} == {
        "grafana": ["observability"],
        "shoppers": ["demo"],
    }


def test_both_composes_take_it():
    """1.29 knows no top-level name; v2 complains about a version."""
    assert set(compose_files.compose()) - {key for key in compose_files.compose() if key.startswith("x-")} == {
        "services",
        "volumes",
    }


@pytest.fixture(params=[["docker", "compose"], ["docker-compose"]], ids=["v2", "1.29"])
def compose(request: pytest.FixtureRequest) -> Callable[..., str]:
    """What Compose itself says. Without an engine it only parses; where a machine has none there is nothing to ask."""
    command: list[str] = request.param
    if shutil.which(command[0]) is None or subprocess.run([*command, "version"], capture_output=True).returncode:
        pytest.skip(f"no {' '.join(command)}")

    def told(*words: str) -> str:
        done = subprocess.run([*command, *words], cwd=ROOT, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr
        return done.stdout

    return told


def test_compose_itself_reads_it(compose: Callable[..., str]):
    told = compose("--profile", "demo", "--profile", "observability", "config", "--services")
    assert set(told.split()) == set(EVERY)


def test_a_password_for_redis_goes_in_by_a_second_file(compose: Callable[..., str], tmp_path: Path):
    override = tmp_path / "override.yml"
    override.write_text(security_examples.example("compose-secrets"))
    merged = yaml.safe_load(compose("-f", str(COMPOSE), "-f", str(override), "config"))["services"]
    plain = services()["redis"]["command"]
    assert merged["redis"]["command"][:-2] == [part for part in plain if part not in ("--protected-mode", "no")]
    assert merged["redis"]["command"][-2:] == ["--aclfile", "/run/secrets/redis_users"]
    for name in ("consumer", "recommender", "retrainer"):
        assert merged[name]["environment"]["REDIS_PASSWORD_FILE"] == "/run/secrets/redis_password"
        assert merged[name]["environment"]["REDIS_URL"] == services()[name]["environment"]["REDIS_URL"]
    assert "NOAUTH" in str(merged["redis"]["healthcheck"]["test"])


@pytest.mark.parametrize("name", EVERY)
def test_every_container_is_bounded_and_hardened(name: str):
    service = services()[name]
    assert in_bytes(service["mem_limit"]) >= 256 << 20
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert "privileged" not in service
    assert not any("docker.sock" in volume for volume in service.get("volumes", ()))
    assert any(place.startswith("/tmp") for place in service["tmpfs"])
    # What is in a tmpfs counts as the container's memory.
    sizes = [re.search(r"[:,]size=(\w+)", place) for place in service["tmpfs"]]
    assert sum(in_bytes(size[1]) for size in sizes) <= in_bytes(service["mem_limit"]) // 2
    assert service["logging"]["options"] == {"max-size": "10m", "max-file": "3"}


@pytest.mark.parametrize("name", EVERY)
def test_what_runs_on_has_a_health_check_and_starts_again(name: str):
    service = services()[name]
    if name in ONE_SHOT:
        assert service["restart"] == "no"
        return
    assert service["restart"] == "unless-stopped"
    assert {"test", "interval", "timeout", "retries", "start_period"} <= set(service["healthcheck"])


@pytest.mark.parametrize("name", EVERY)
def test_images_are_pinned_in_the_env_file(name: str):
    variable = re.search(rf"^  {name}:\n(?:    .*\n|\n)*?    image: \${{([A-Z_]+):-", COMPOSE.read_text(), re.M)
    assert services()[name]["image"] == versions()[variable[1] if variable else "DRIFTWOOD_IMAGE"]
    tag = services()[name]["image"].rpartition(":")[2]
    assert re.match(r"v?\d", tag), f"{name}: {tag} is no version"


def test_defaults_in_the_file_are_those_of_the_env_file():
    for name, default in variables(COMPOSE.read_text()).items():
        assert versions()[name] == default, name


@pytest.mark.parametrize("name", OF_OURS)
def test_every_variable_of_our_services_is_a_setting(name: str):
    for variable, value in services()[name]["environment"].items():
        assert variable in SETTINGS, f"{name}: {variable} is no setting"
        SETTINGS[variable](**{variable.lower(): value})


def test_the_env_file_of_the_services_names_settings():
    lines = (ROOT / "deploy" / "compose.env").read_text().splitlines()
    named = [line.lstrip("# ").split("=")[0] for line in lines if re.match(r"(# )?[A-Z_]+=", line)]
    assert named
    assert not set(named) - set(SETTINGS)
    assert all(services()[name]["env_file"] == ["deploy/compose.env"] for name in OF_OURS)


def test_no_password_is_written_anywhere():
    for name in EVERY:
        for variable, value in services()[name].get("environment", {}).items():
            assert not re.search(r"PASSWORD|SECRET|TOKEN|API_KEY", variable), f"{name}: {variable}={value}"
    assert not re.search(r"://[^/\s]*:[^/\s@]*@", COMPOSE.read_text())


@pytest.mark.parametrize("name", EVERY)
def test_ports_are_for_this_machine_only(name: str):
    assert all(str(port).startswith("127.0.0.1:") for port in services()[name].get("ports", ()))


def test_the_consumer_can_be_scaled():
    service = services()["consumer"]
    assert "ports" not in service
    assert "container_name" not in service
    assert "CONSUMER_INSTANCE_ID" not in service["environment"]
    assert int(services()["topics"]["environment"]["KAFKA_PARTITIONS"]) >= 3


@pytest.mark.parametrize("name", OF_OURS)
def test_commands_are_modules_and_probes_ask_the_right_port(name: str):
    service = services()[name]
    assert [importlib.util.find_spec(module) is not None for module in service["command"]] == [True]
    ports = {
        "consumer": ConsumerSettings().consumer_port,
        "recommender": HttpSettings().http_port,
        "retrainer": RetrainerSettings().retrainer_port,
        "shoppers": ShopSettings().shop_port,
    }
    if name in ports:
        assert service["healthcheck"]["test"] == ["CMD", "python", "-m", "services.stack.probes", str(ports[name])]


def test_what_starts_waits_for_what_it_needs():
    for name in ("consumer", "recommender", "retrainer"):
        conditions = {on: how["condition"] for on, how in services()[name]["depends_on"].items()}
        assert conditions == {
            "kafka": "service_healthy",
            "redis": "service_healthy",
            "topics": "service_completed_successfully",
        }
    assert services()["topics"]["depends_on"] == {"kafka": {"condition": "service_healthy"}}


def test_one_image_is_built_once():
    assert [name for name in EVERY if "build" in services()[name]] == ["topics"]
    assert set(OF_OURS) == {"topics", "consumer", "recommender", "retrainer", "shoppers"}


def test_what_must_not_be_lost_is_on_a_named_volume():
    mounted = {
        (name, place.split(":")[0]): place.split(":")[1:]
        for name in EVERY
        for place in services()[name].get("volumes", ())
        if not place.startswith("./")
    }
    assert {volume for _, volume in mounted} == set(compose_files.compose()["volumes"])
    assert mounted["redis", "redis-data"] == ["/data"]
    assert mounted["kafka", "kafka-data"] == [services()["kafka"]["environment"]["KAFKA_LOG_DIRS"]]
    in_image = {
        name: re.search(rf"{name}=(\S+?)\s", DOCKERFILE)[1] for name in ("MODEL_URI", "SESSION_LOG_URI", "TRAIN_DIR")
    }
    assert mounted["retrainer", "models"] == [in_image["MODEL_URI"]]
    assert mounted["retrainer", "session-log"] == [in_image["SESSION_LOG_URI"]]
    assert mounted["retrainer", "training"] == [in_image["TRAIN_DIR"]]
    for reader in ("consumer", "recommender"):
        assert mounted[reader, "models"] == [in_image["MODEL_URI"], "ro"]


def test_redis_keeps_all_it_has_answered_and_fits_its_container():
    command = services()["redis"]["command"]
    given = dict(zip(command[1::2], command[2::2], strict=True))
    assert given["--appendonly"] == "yes"
    assert given["--appendfsync"] in ("everysec", "always")
    assert given["--maxmemory-policy"] == "noeviction"
    assert 2 * in_bytes(given["--maxmemory"]) <= in_bytes(services()["redis"]["mem_limit"])
    # Whoever raises the one in .env finds the other beside it.
    assert "mem_limit: ${REDIS_MEMORY:-1536m}" in COMPOSE.read_text()


def test_the_broker_may_run_what_it_unpacks():
    """snappy and zstd load libraries from /tmp; Docker mounts a tmpfs noexec unless it is told."""
    (place,) = (place for place in services()["kafka"]["tmpfs"] if place.startswith("/tmp:"))
    assert "exec" in place.split(":")[1].split(",")


def test_redis_has_the_rights_that_its_image_begins_with():
    """As root it gives /data to its user, into which it must look at every start: DAC_OVERRIDE."""
    assert set(services()["redis"]["cap_add"]) == {"CHOWN", "DAC_OVERRIDE", "SETGID", "SETUID"}
    assert not any("cap_add" in services()[name] for name in EVERY if name != "redis")


def test_topics_have_their_settings():
    """The container runs services.stack.topics, which makes them so."""
    settings = KafkaSettings()
    configs = topic_configs(settings)
    assert set(configs) == {getattr(settings, n) for n in KafkaSettings.model_fields if n.startswith("topic_")}
    compacted = {name for name, config in configs.items() if config.get("cleanup.policy") == "compact"}
    assert compacted == {settings.topic_recommendations, settings.topic_forgets}
    assert all("retention.ms" in configs[name] for name in set(configs) - compacted)


def test_three_copies_are_two_before_a_record_counts():
    """acks=all waits for the copies in sync, and by Kafka's default the leader alone is enough of those."""
    for replication, least in ((1, None), (2, None), (3, "2"), (5, "2")):
        configs = topic_configs(KafkaSettings(kafka_replication=replication)).values()
        assert {config.get("min.insync.replicas") for config in configs} == {least}


def test_mounted_files_are_there():
    for name in ("prometheus",):
        for volume in services()[name]["volumes"]:
            if volume.startswith("./"):
                assert (ROOT / volume.split(":")[0]).is_dir(), volume
    yaml.safe_load((ROOT / "deploy" / "prometheus" / "prometheus.yml").read_text())


def test_the_image_is_small_and_safe():
    build, last = DOCKERFILE.split("\nFROM ")[1:]
    assert build.startswith("${PYTHON_IMAGE} AS build")
    assert last.startswith("${PYTHON_IMAGE}\n")
    assert "ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu" in build
    assert not re.search(r"\b(pip|apt-get|gcc|binutils)\b", last)
    assert "--no-cache-dir" in build
    assert re.search(r"^USER 10001:10001$", last, re.M)
    assert not re.search(r"^ADD |^(ARG|ENV) .*(PASSWORD|SECRET|TOKEN|KEY)", DOCKERFILE, re.M)
    # Also from a checkout that its owner alone may read, and before byte code is written.
    assert build.index("COPY shared") < build.index("RUN chmod -R a+rX /app") < build.index("RUN PYTHONPATH")
    assert "--mount" not in DOCKERFILE, "the builder of docker-compose 1.29 knows no BuildKit syntax"


STUB = """#!/bin/sh
echo "$*" >>"$0.asked"
case "$*" in
  "image inspect --format {{.Size}} driftwood:0.1.0") echo 1425000000 ;;
  "image inspect --format {{.Size}} python:3.11-slim") [ -n "$BASE" ] && echo "$BASE" ;;
esac
"""


@pytest.fixture
def make_up(tmp_path: Path) -> Callable[..., tuple[str, list[str]]]:
    """deploy/compose.sh with a docker that only notes what it is asked: (what it prints, the questions)."""
    stub = tmp_path / "docker"
    stub.write_text(STUB)
    stub.chmod(0o755)

    def run(word: str, **environment: str) -> tuple[str, list[str]]:
        env = {"PATH": f"{tmp_path}:/usr/bin:/bin", **environment}
        told = subprocess.run(["sh", ROOT / "deploy/compose.sh", word], env=env, capture_output=True, text=True)
        assert told.returncode == 0, told.stderr
        return told.stdout, Path(f"{stub}.asked").read_text().splitlines()

    return run


def test_make_up_runs_what_is_checked_out(make_up: Callable[..., tuple[str, list[str]]]):
    """An image of an older checkout has the same tag."""
    assert "compose up --detach --build --scale consumer=3" in make_up("up", SCALE="consumer=3")[1]
    assert make_up("up", UP_BUILD="no")[1].count("compose up --detach") == 1


def test_image_size_is_silent_on_a_base_that_docker_does_not_keep(make_up: Callable[..., tuple[str, list[str]]]):
    assert make_up("size")[0] == "driftwood:0.1.0: 1425 MB\n"
    assert make_up("size", BASE="559000000")[0] == "driftwood:0.1.0: 1425 MB, of these 559 MB from python:3.11-slim\n"


def test_only_what_the_image_needs_goes_to_the_builder():
    lines = (ROOT / ".dockerignore").read_text().split("\n")
    rules = [line for line in lines if line and not line.startswith("#")]
    assert rules[0] == "*"
    copied = [part for line in re.findall(r"^COPY (?!--from)(.*)$", DOCKERFILE, re.M) for part in line.split()[:-1]]
    assert {f"!{path}" for path in copied} == {rule for rule in rules if rule.startswith("!")}
