"""The paper's central figure: accuracy against thought length and lookahead, a DVC experiment an arm."""
