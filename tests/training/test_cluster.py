from training.cluster import CHECK, TRAIN, Cluster, interface_towards, make_cluster


def test_one_rank_needs_no_torchrun() -> None:
    assert Cluster().torchrun(TRAIN, "training.train", "a", "b") == ["training.train", "a", "b"]
    assert not Cluster().uses_torchrun


def test_ranks_of_one_node_meet_by_themselves() -> None:
    arguments = Cluster(ranks_per_node=8).torchrun(TRAIN, "training.train", "a")
    assert arguments == [
        *("training.ranks", "--standalone", "--nproc-per-node", "8"),
        *("-m", "training.train", "a"),
    ]


def test_nodes_meet_at_the_head_each_stage_and_try_at_a_port_of_its_own() -> None:
    addresses = "10.0.0.4\n10.0.0.5\n"
    cluster = make_cluster(node_rank=1, node_ips=addresses, port=2000, node_count=2, ranks=16)
    assert (cluster.head, cluster.world_size, cluster.ranks_per_node) == ("10.0.0.4", 16, 8)
    assert not cluster.is_head
    ports = set()
    for offset in (CHECK, TRAIN, TRAIN + 1):
        arguments = cluster.torchrun(offset, "training.train")
        options = dict(zip(arguments[1:-2:2], arguments[2:-2:2], strict=True))
        assert options["--nnodes"] == "2"
        assert options["--node-rank"] == "1"
        assert options["--master-addr"] == "10.0.0.4"
        assert options["--nproc-per-node"] == "8"
        ports.add(options["--master-port"])
    assert ports == {"2000", "2001", "2002"}


def test_one_rank_on_each_of_two_nodes_needs_torchrun() -> None:
    cluster = make_cluster(node_rank=0, node_ips="a b", port=1, node_count=2, ranks=2)
    assert cluster.uses_torchrun
    assert cluster.torchrun(CHECK, "m")[0] == "training.ranks"


def test_a_local_run_has_no_addresses() -> None:
    cluster = make_cluster(node_rank=0, node_ips="", port=1, node_count=1, ranks=2)
    assert cluster == Cluster(port=1, ranks_per_node=2)


def test_the_interface_towards_an_address() -> None:
    assert interface_towards("127.0.0.1") in ("lo", "lo0")
    assert interface_towards("no such host") is None
