//! dprof-cli: pure analysis and rendering behind a thin binary.
