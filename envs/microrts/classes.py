"""Java classes that microRTS lacks. They are built inside the JVM, because no compiler is at hand."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

from envs.microrts.game import java

_PUBLIC, _PUBLIC_STATIC = 1, 9


def _class(name: str) -> Any:
    of = java("java.lang.constant.ClassDesc")
    return of.ofDescriptor(name) if name.startswith("[") else of.of(name)


def _signature(descriptor: str) -> Any:
    return java("java.lang.constant.MethodTypeDesc").ofDescriptor(descriptor)


def _define(name: Any, describe: Callable[[Any], None]) -> Any:
    """Define a class in the game's package `util`; `describe` tells a ClassBuilder what it holds."""
    import jpype

    content = java("java.lang.classfile.ClassFile").of().build(name, describe)
    handles = java("java.lang.invoke.MethodHandles")
    inside = handles.privateLookupIn(java("util.Sampler").class_, handles.lookup())
    return jpype.JClass(inside.defineClass(content))


@cache
def with_own_stream(bot: str) -> Any:
    """A subclass of a bot's class that draws its random numbers from its field `own`.

    All games of a JVM draw from one static generator, so a bot's play would depend on the other
    games in the process.

        public class OwnStream<Bot> extends <Bot> {
            public Random own;
            public PlayerAction getAction(int player, GameState state) {
                Random shared = Sampler.generator;
                Sampler.generator = own;
                PlayerAction action = super.getAction(player, state);
                Sampler.generator = shared;
                return action;
            }
            public AI clone() { return this; }  // a client clones its bot for each game
        }
    """
    parent, name = _class(bot), _class("util.OwnStream" + bot.rpartition(".")[2])
    random, sampler = _class("java.util.Random"), _class("util.Sampler")
    nothing, acting = _signature("()V"), _signature("(ILrts/GameState;)Lrts/PlayerAction;")
    this, player, state, shared, action = range(5)

    def construct(code: Any) -> None:
        code.aload(this)
        code.invokespecial(parent, "<init>", nothing)
        code.return_()

    def get_action(code: Any) -> None:
        code.getstatic(sampler, "generator", random)
        code.astore(shared)
        code.aload(this)
        code.getfield(name, "own", random)
        code.putstatic(sampler, "generator", random)
        code.aload(this)
        code.iload(player)
        code.aload(state)
        code.invokespecial(parent, "getAction", acting)
        code.astore(action)
        code.aload(shared)
        code.putstatic(sampler, "generator", random)
        code.aload(action)
        code.areturn()

    def clone(code: Any) -> None:
        code.aload(this)
        code.areturn()

    def describe(built: Any) -> None:
        built.withSuperclass(parent)
        built.withFlags(_PUBLIC)
        built.withField("own", random, _PUBLIC)
        built.withMethodBody("<init>", nothing, _PUBLIC, construct)
        built.withMethodBody("getAction", acting, _PUBLIC, get_action)
        built.withMethodBody("clone", _signature("()Lai/core/AI;"), _PUBLIC, clone)

    return _define(name, describe)


@cache
def flattener() -> Any:
    """A class that copies nested arrays of ints into a flat one, in one call.

    JPype itself would need 0.1 us for each inner array.

    public class Flatten {
        /** Copies into `out` from the place `at` on; returns the place behind the copy. */
        public static int copy(Object array, int[] out, int at) {
            if (array instanceof int[] row) {
                System.arraycopy(row, 0, out, at, row.length);
                return at + row.length;
            }
            for (int i = 0; i < ((Object[]) array).length; i++)
                at = copy(((Object[]) array)[i], out, at);
            return at;
        }
    }
    """
    name, system = _class("util.Flatten"), _class("java.lang.System")
    row, rows = _class("[I"), _class("[Ljava/lang/Object;")
    copying = _signature("(Ljava/lang/Object;[II)I")
    moving = _signature("(Ljava/lang/Object;ILjava/lang/Object;II)V")
    array, out, at, i = range(4)

    def length_of(code: Any, kind: Any) -> None:
        code.aload(array)
        code.checkcast(kind)
        code.arraylength()

    def copy(code: Any) -> None:
        nested, again, end = code.newLabel(), code.newLabel(), code.newLabel()
        code.aload(array)
        code.instanceOf(row)
        code.ifeq(nested)
        code.aload(array)
        code.iconst_0()
        code.aload(out)
        code.iload(at)
        length_of(code, row)
        code.invokestatic(system, "arraycopy", moving)
        code.iload(at)
        length_of(code, row)
        code.iadd()
        code.ireturn()
        code.labelBinding(nested)
        code.iconst_0()
        code.istore(i)
        code.labelBinding(again)
        code.iload(i)
        length_of(code, rows)
        code.if_icmpge(end)
        code.aload(array)
        code.checkcast(rows)
        code.iload(i)
        code.aaload()
        code.aload(out)
        code.iload(at)
        code.invokestatic(name, "copy", copying)
        code.istore(at)
        code.iinc(i, 1)
        code.goto_(again)
        code.labelBinding(end)
        code.iload(at)
        code.ireturn()

    def describe(built: Any) -> None:
        built.withFlags(_PUBLIC)
        built.withMethodBody("copy", copying, _PUBLIC_STATIC, copy)

    return _define(name, describe)
