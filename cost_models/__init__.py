"""Pure float maths: physical work to seconds, joules, bytes and dollars."""
