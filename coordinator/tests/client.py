"""A client that knows an address and a certificate, and nothing of Gantry: it learns the API from the server itself.

Usage: client.py ADDRESS DIR, where DIR holds ca.crt, tls.crt and tls.key. Prints `ok NAME` for each thing that it did.
"""

import socket
import ssl
import sys
from pathlib import Path

import grpc
from google.protobuf import descriptor_pool, json_format, message_factory
from google.rpc import error_details_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase
from grpc_status import rpc_status

SECONDS = 15


def name_in_certificate(address, folder):
    """The name that the server's certificate bears. Its chain is checked, against ca.crt."""
    host, port = address.rsplit(":", 1)
    context = ssl.create_default_context(cafile=folder / "ca.crt")
    context.check_hostname = False
    context.load_cert_chain(folder / "tls.crt", folder / "tls.key")
    context.set_alpn_protocols(["h2"])
    with socket.create_connection((host, int(port)), SECONDS) as raw, context.wrap_socket(raw) as tls:
        ((kind, name),) = tls.getpeercert()["subjectAltName"]
        assert kind == "DNS", kind
        return name


class Api:
    """The methods of a service, made from its descriptor."""

    def __init__(self, channel, pool, service):
        self.channel = channel
        self.service = pool.FindServiceByName(service)

    def call(self, method, request=None):
        found = self.service.methods_by_name[method]
        make = message_factory.GetMessageClass
        message = json_format.ParseDict(request or {}, make(found.input_type)())
        kind = self.channel.unary_stream if found.server_streaming else self.channel.unary_unary
        stub = kind(
            f"/{self.service.full_name}/{method}",
            request_serializer=lambda message: message.SerializeToString(),
            response_deserializer=make(found.output_type).FromString,
        )
        return stub(message, timeout=SECONDS)


def refusal(call, *arguments):
    """The status and the details of a call that must fail."""
    try:
        call(*arguments)
    except grpc.RpcError as error:
        status = rpc_status.from_call(error)
        kinds = error_details_pb2.ErrorInfo, error_details_pb2.BadRequest, error_details_pb2.PreconditionFailure
        details = {}
        for detail in status.details:
            for kind in kinds:
                if detail.Is(kind.DESCRIPTOR):
                    details[kind.__name__] = kind.FromString(detail.value)
        return error.code(), details
    raise AssertionError(f"{arguments} was not refused")


def pages(api, method, field, size):
    """Every item of a list, page by page."""
    token, count = "", 0
    while True:
        answer = api.call(method, {"page_size": size, "page_token": token})
        items = getattr(answer, field)
        assert len(items) <= size, len(items)
        yield from items
        token, count = answer.next_page_token, count + 1
        if not token:
            assert count > 1, "one page is no paging"
            return


def main(address, folder):
    folder = Path(folder)
    credentials = grpc.ssl_channel_credentials(*((folder / name).read_bytes() for name in ("ca.crt", "tls.key", "tls.crt")))
    name = name_in_certificate(address, folder)
    channel = grpc.secure_channel(address, credentials, [("grpc.ssl_target_name_override", name)])

    database = ProtoReflectionDescriptorDatabase(channel)
    services = sorted(database.get_services())
    for service in ("gantry.v1.Coordinator", "gantry.v1.Registry", "grpc.health.v1.Health"):
        assert service in services, services
    assert "gantry.v1.NodeAgent" not in services, "it is not served here"
    print("ok reflection")

    health = health_pb2_grpc.HealthStub(channel)
    for service in ("", "gantry.v1.Coordinator", "gantry.v1.Registry"):
        answer = health.Check(health_pb2.HealthCheckRequest(service=service), timeout=SECONDS)
        assert answer.status == health_pb2.HealthCheckResponse.SERVING, (service, answer)
    print("ok health")

    api = Api(channel, descriptor_pool.DescriptorPool(database), "gantry.v1.Coordinator")
    nodes = {node.name: node for node in api.call("ListNodes").nodes}
    assert sorted(nodes) == ["node-a", "node-b"], nodes
    assert json_format.MessageToDict(nodes["node-a"])["state"] == "NODE_STATE_READY"
    print("ok list")

    names = [container.name for container in pages(api, "ListContainers", "containers", 2)]
    assert names == ["c1", "c2", "c3", "c4", "c5"], names
    print("ok pages")

    code, details = refusal(api.call, "GetMigration", {"name": "none"})
    info = details["ErrorInfo"]
    assert (code, info.reason, info.domain) == (grpc.StatusCode.NOT_FOUND, "MIGRATION_NOT_FOUND", "gantry.dev"), info
    code, details = refusal(api.call, "CreateMigration", {"spec": {"container": "No!"}})
    fields = [violation.field for violation in details["BadRequest"].field_violations]
    assert (code, fields) == (grpc.StatusCode.INVALID_ARGUMENT, ["spec.container"]), (code, fields)
    code, details = refusal(api.call, "CreateMigration", {"spec": {"container": "c1", "target_node": "node-a"}})
    assert code == grpc.StatusCode.INVALID_ARGUMENT, code
    print("ok errors")

    dry = api.call("CreateMigration", {"spec": {"container": "c1", "target_node": "node-b"}, "validate_only": True})
    assert dry.name == "", dry
    assert not api.call("ListMigrations").migrations, "a dry run made something"
    print("ok validate_only")

    first = api.call("CreateMigration", {"name": "one", "spec": {"container": "c1", "target_node": "node-b"}})
    assert api.call("GetMigration", {"name": "one"}).uid == first.uid
    # What is watched from a revision begins after it, and goes on with what happens from now on.
    events = api.call("WatchMigrations", {"revision": first.revision})
    revisions, names = [], set()
    api.call("CreateMigration", {"name": "two", "spec": {"container": "c2", "target_node": "node-b"}})
    for event in events:
        revisions.append(event.revision)
        names.add(event.migration.name)
        if "two" in names:
            events.cancel()
            break
    assert revisions == sorted(set(revisions)), revisions
    print("ok watch")
    code, _ = refusal(api.call, "CreateMigration", {"spec": {"container": "c1", "target_node": "node-b"}})
    assert code == grpc.StatusCode.ABORTED, code
    print("ok end")


main(*sys.argv[1:])
