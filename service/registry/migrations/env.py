"""How Alembic runs here: on the connection and in the transaction that `schema.py` hands over."""

from alembic import context

from service.registry.tables import INDEX

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=INDEX,
    transactional_ddl=True,
)
with context.begin_transaction():
    context.run_migrations()
