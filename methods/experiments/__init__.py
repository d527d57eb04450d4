"""One file, one question: the evidence behind the methods, each with a bar."""
