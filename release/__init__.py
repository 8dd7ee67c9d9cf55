"""Packages for machines without a compiler, and proof that they run.

    wheels.py     `make wheels`: a wheel for each instruction set architecture and Python
    check.py      `make test-wheels`: installs each into an empty environment and runs it
    others.py     `make compile-others`: macOS and musl, compiled and linked but not run

They stand on

    toolchain.py  compiler commands: gcc compiles, Zig links with an old glibc
    openmp.py     libgomp of Debian's source, for that glibc
    pythons.py    Pythons of this machine and of Debian, and environments for them
    debian.py     packages of any Debian suite, without touching those of the system

Everything that they make is in build/release/, finished wheels are in dist/.
"""
