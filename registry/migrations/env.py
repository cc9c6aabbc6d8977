"""What Alembic runs: the migrations, inside the transaction of the connection it was given."""

from alembic import context


def run() -> None:
    """Apply what `database.migrate` asked for."""
    context.configure(connection=context.config.attributes["connection"], transactional_ddl=True)
    with context.begin_transaction():
        context.run_migrations()


if hasattr(context, "config"):  # Alembic runs this file; it is only imported by those who look at it
    run()
