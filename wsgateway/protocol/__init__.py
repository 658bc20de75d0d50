"""What travels on sockets and on subjects: pure, without a clock and without I/O."""
