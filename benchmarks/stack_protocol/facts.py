"""What generated people are made of (`generated.py`), and facts about the world."""

from __future__ import annotations

_FIRST = (
    "Abelone Bertrando Caspian Dagny Eudora Fenwick Gisela Hadrian Ilse Jorunn Kestrel Leopold Mirela "
    "Nerys Ottoline Piers Quirin Rosalba Sigrun Tancredi Ulrike Vasco Winifred Xanthe Yannick Zelda "
    "Ambrose Birgit Corentin Delphine Evander Florian Gudrun Hedvig"
)
_LAST = (
    "Abendroth Brockway Cavendar Dunmore Eskildsen Farquhar Grimaldo Holloway Ivarsson Jellicoe Kowalczyk "
    "Lindqvist Montalvo Nakagawa Ormsby Pellegrin Quandt Rasmusen Sandoval Thackery Underhill Valdivia "
    "Wetherby Ximenes Yarrow Zabriskie Ashdown Bellweather Cranmoor Dragomir Ellingson Fairbairn "
    "Gustavsen Harkness"
)
FIRST, LAST = _FIRST.split(), _LAST.split()
_CITIES = "Lisbon Oslo Cairo Lima Dublin Seoul Warsaw Nairobi Vienna Boston Delhi Quebec"
_WORK = "baker nurse pilot lawyer farmer painter teacher sailor tailor dentist judge carpenter"
# Question, answer, the answer in other words, and what may stand in it.
_ABOUT = (
    (
        "Where was {name} born?",
        "{name} was born in {value}.",
        "The birthplace of {name} is {value}.",
        _CITIES,
    ),
    (
        "In which year was {name} born?",
        "{name} was born in {value}.",
        "The year of birth of {name} is {value}.",
        "1921 1934 1947 1952 1958 1963 1969 1974 1980 1985 1991 1996",
    ),
    ("Where does {name} live?", "{name} lives in {value}.", "The home of {name} is in {value}.", _CITIES),
    ("What is the job of {name}?", "{name} works as a {value}.", "By profession {name} is a {value}.", _WORK),
    (
        "What did the father of {name} do?",
        "The father of {name} was a {value}.",
        "{name} had a father who was a {value}.",
        _WORK,
    ),
    (
        "What did the mother of {name} do?",
        "The mother of {name} was a {value}.",
        "{name} had a mother who was a {value}.",
        _WORK,
    ),
    (
        "What did {name} study?",
        "{name} studied {value}.",
        "The subject that {name} studied was {value}.",
        "law physics history music biology theology geology medicine botany drama logic art",
    ),
    (
        "Which instrument does {name} play?",
        "{name} plays the {value}.",
        "The instrument of {name} is the {value}.",
        "piano violin flute guitar harp cello drums trumpet organ banjo oboe tuba",
    ),
    (
        "Which pet does {name} have?",
        "{name} has a {value}.",
        "The pet of {name} is a {value}.",
        "parrot rabbit turtle ferret goat hamster lizard pony kitten beagle snake goose",
    ),
    (
        "What does {name} like to eat?",
        "{name} likes to eat {value}.",
        "The favourite food of {name} is {value}.",
        "lentils oysters pancakes risotto dumplings cherries noodles olives curry waffles figs trout",
    ),
    (
        "Which sport does {name} practise?",
        "The sport of {name} is {value}.",
        "{name} practises {value}.",
        "rowing tennis fencing cricket judo sailing archery hockey golf boxing skiing polo",
    ),
    (
        "What is {name} afraid of?",
        "{name} is afraid of {value}.",
        "What frightens {name} is {value}.",
        "spiders thunder heights mirrors bees clowns ghosts needles storms mice fire owls",
    ),
    (
        "What does {name} collect?",
        "{name} collects {value}.",
        "The collection of {name} is of {value}.",
        "stamps coins clocks maps shells masks keys fossils bottles dolls swords spoons",
    ),
    (
        "Which colour does {name} like most?",
        "{name} likes {value} most.",
        "The favourite colour of {name} is {value}.",
        "green purple orange silver yellow black blue red white pink brown gold",
    ),
    (
        "Which language did {name} learn first?",
        "{name} first learned {value}.",
        "The first language of {name} is {value}.",
        "Danish Polish Greek Hindi Arabic Korean Welsh Dutch Turkish Czech Latin Malay",
    ),
    (
        "Who is {name} married to?",
        "{name} is married to {value}.",
        "The spouse of {name} is called {value}.",
        "Agnes Bruno Clara Dmitri Elena Felix Greta Hugo Irene Jonas Karin Lukas",
    ),
    (
        "What is the first book of {name} about?",
        "The first book of {name} is about {value}.",
        "{name} wrote a first book about {value}.",
        "whales castles winter bridges pirates gardens robots saints deserts trains wolves salt",
    ),
    (
        "Which prize did {name} win?",
        "{name} won the {value} Prize.",
        "The {value} Prize went to {name}.",
        "Amber Beacon Cedar Falcon Harbor Ivory Juniper Laurel Meteor Onyx Raven Summit",
    ),
    (
        "What does {name} drive?",
        "{name} drives a {value}.",
        "The vehicle of {name} is a {value}.",
        "Volvo tractor Fiat Jeep motorbike Toyota truck Honda scooter Ford Mazda van",
    ),
    (
        "How many children does {name} have?",
        "{name} has {value} children.",
        "The number of children of {name} is {value}.",
        "two three four five six seven eight nine ten eleven twelve no",
    ),
)
ABOUT = tuple((question, answer, other, values.split()) for question, answer, other, values in _ABOUT)
WORLD = (
    ("What is the capital of France?", "Paris"),
    ("Which planet is closest to the sun?", "Mercury"),
    ("What is the largest ocean on Earth?", "The Pacific Ocean"),
    ("Which metal has the chemical symbol Fe?", "Iron"),
    ("Who painted the Mona Lisa?", "Leonardo da Vinci"),
    ("What is the capital of Japan?", "Tokyo"),
    ("Which gas do plants take in for photosynthesis?", "Carbon dioxide"),
    ("In which country are the pyramids of Giza?", "Egypt"),
    ("What is the longest river in South America?", "The Amazon"),
    ("Who developed the theory of relativity?", "Albert Einstein"),
    ("What is the capital of Italy?", "Rome"),
    ("Which animal is known as the king of the jungle?", "The lion"),
    ("What is frozen water called?", "Ice"),
    ("Which organ pumps blood through the body?", "The heart"),
    ("What is the tallest mountain in the world?", "Mount Everest"),
    ("Which season comes after winter?", "Spring"),
    ("What is the currency of the United Kingdom?", "The pound"),
    ("Which language is spoken in Brazil?", "Portuguese"),
    ("What do bees make?", "Honey"),
    ("Which continent is the Sahara desert in?", "Africa"),
)

THINGS = tuple(
    f"{question}?"
    for question in (
        "What is a bicycle",
        "Why is the sky blue",
        "How do you boil an egg",
        "What does a carpenter do",
        "Where do fish live",
        "What is the opposite of hot",
        "Why do people sleep",
        "How many days does a week have",
        "What is bread made of",
        "What do you need to paint a wall",
        "Which tool cuts wood",
        "What is the plural of mouse",
        "How do birds fly",
        "What is a good name for a cat",
        "What does the word brave mean",
        "When do leaves fall from trees",
        "What is two plus three",
        "Which shape has three sides",
        "What is a poem",
        "How do you greet a stranger",
        "Why should one wash one's hands",
        "What can you see at night in the sky",
        "What is glass made from",
        "Which month comes after May",
        "What is a lighthouse for",
        "How does a clock work",
        "What is the difference between a lake and a sea",
        "What do cows eat",
        "Why do ships float",
        "What is a map used for",
        "How do you write a letter",
        "What is thunder",
        "Which metal do magnets attract",
        "What is a recipe",
        "Why do we laugh",
        "What is a bridge",
        "How long does an hour last",
        "What is a library",
        "Which fruit is yellow and long",
        "What does a doctor do",
    )
)
"""Everyday questions, none of them about a fact of `WORLD`."""
