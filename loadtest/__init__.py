"""The load-test harness: spawns nodes, attacks them and reports what it measured."""
