"""The version of qabuild."""

VERSION = "0.2.0.dev0"
