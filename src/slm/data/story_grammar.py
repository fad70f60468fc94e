"""The words and rules of the built-in stories.

A rule is a template. [a|b*3|c] is one of its options, b three times as often as a; <name> is another rule's text;
{hero=girls} is a row drawn from a table, remembered as hero from here on, and {hero} or {hero.he} is that row again,
free of charge; #happy is the story's ending and shows nothing. A line's end is a space, save next to [ | and ].

Two laws keep the entropy exact, and tests hold them: the text ahead of a choice always tells which option was taken,
and a variable is drawn where it is first seen, so that nothing is chosen that cannot be read.
"""

from __future__ import annotations

import re

Table = list[dict[str, str]]


def _a(noun: str) -> str:
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"


def _people(names: str, he: str, him: str, his: str) -> Table:
    """Rows of names and their pronouns."""
    forms = {"he": he, "him": him, "his": his, "He": he.capitalize(), "His": his.capitalize()}
    return [{"": name, "a": _a(name)} | forms for name in names.split(", ")]


def _tables(text: str) -> dict[str, Table]:
    """Tables of rows such as `kite / fly it;` below a line of the table's name and columns.

    The first column is what the row is called; column "a" is added, that with its article.
    """
    tables = {}
    for title, body in _titled(text).items():
        name, *columns = title.split()
        rows = [" ".join(row.split()).split(" / ") for row in body.split(";")]
        tables[name] = [dict(zip(["", *columns, "a"], [*row, _a(row[0])], strict=True)) for row in rows]
    return tables


def _titled(text: str) -> dict[str, str]:
    """The parts of a text by their titles, which stand at a line's start and end in a colon."""
    _, *parts = re.split(r"^([a-z_ ]+):", text, flags=re.MULTILINE)
    return dict(zip(parts[::2], parts[1::2], strict=True))


_SHE, _HE = ("she", "her", "her"), ("he", "him", "his")

PEOPLE = ("girls", "boys", "friend_girls", "friend_boys", "elder_women", "elder_men")  # tables of names

TABLES: dict[str, Table] = {
    "girls": _people(
        "Mia, Lily, Anna, Rosa, Nora, Ella, Ruby, Clara, Emma, Tilly, Hazel, Lucy, Molly, Ivy, Zoe, Ada", *_SHE
    ),
    "boys": _people("Tom, Ben, Sam, Leo, Max, Finn, Hugo, Oscar, Jack, Noah, Otto, Theo, Milo, Luke, Felix, Pip", *_HE),
    "friend_girls": _people("Kate, Greta, Fay, Wendy, Jill, Maya, Bella, Nell, Sue, Dora, Olga, Vera", *_SHE),
    "friend_boys": _people("Bob, Dan, Tim, Ned, Rory, Gus, Eddie, Karl, Paul, Joe, Vito, Ralf", *_HE),
    "elder_women": _people("Grandma, Mother, Aunt May, Aunt Jo", *_SHE),
    "elder_men": _people("Grandpa, Father, Uncle Jim, Uncle Ray", *_HE),
    "strangers": [
        *_people("old woman, tall woman, seamstress, washerwoman", *_SHE),
        *_people("old man, tall man, fisherman, shepherd", *_HE),
    ],
} | _tables("""
girl: girl
boy: boy
kinds: rabbit; fox; bear; mouse; badger; hedgehog; otter; deer
friend_kinds: duck; goat; cat; squirrel; mole; goose; pony; raccoon; beaver; hamster; donkey; dog
traits:
little; small; young; quiet; cheerful; curious; lively; gentle; merry; clever; sleepy; shy; polite; careful; friendly;
busy
jewels: stone; ring; button; shell; feather; nut; leaf; flower; whistle; coin; marble; key
houses: cottage; house; hut; cabin; farmhouse; tower
homes:
by the sea; near the forest; on a green hill; beside the river; behind the mill; in a quiet valley; between two lakes;
at the end of a long road; under three tall trees; next to the bakery
hobbies did:
singing / sang a little song; drawing / drew a picture of it all; dancing / danced around the table;
telling stories / told the whole story twice; whistling / whistled a cheerful tune; baking / baked a round cake;
counting things / counted every star; making up rhymes / made up a rhyme about it;
jumping in puddles / jumped in every puddle; playing the flute / played a tune on the flute
skies later:
sunny / the sun went down behind the trees; windy / the wind lay down to sleep; rainy / the rain stopped at last;
cloudy / the clouds drifted away; misty / the mist came up from the fields; warm / the warm air smelled of hay;
bright / the bright sky turned pink; foggy / the fog hid the moon; grey / the grey sky turned dark blue;
cool / the cool air smelled of rain
days: Monday; Tuesday; Wednesday; Thursday; Friday; Saturday; Sunday
places in:
garden / in the garden; park / in the park; meadow / in the meadow; forest / in the forest; beach / on the beach;
field / in the field; yard / in the yard; orchard / in the orchard; market / at the market; pond / by the pond;
river / by the river; hill / on the hill; barn / in the barn; school / behind the school; well / at the well;
mill / by the mill
coats: coat; hat; scarf; shirt; cape; cap; shawl; vest
numbers capital:
two / Two; three / Three; four / Four; five / Five; six / Six; seven / Seven; eight / Eight; nine / Nine; ten / Ten
colors: red; blue; green; yellow; white; black; brown; purple; pink; orange; golden; silver; striped; spotted; grey
things play broke mended:
kite / fly it / its string snapped / tied on a new string; ball / throw it / it went flat / patched the hole;
drum / beat it / its skin tore / put on a new skin; boat / sail it / its mast broke / carved a new mast;
doll / hold it / its arm came off / sewed the arm back on;
puppet / make it dance / its leg came off / glued the leg back on; book / read it / its cover tore / glued the cover;
lantern / carry it / its glass broke / put in new glass; basket / fill it / its handle broke / made a new handle;
scarf / try it on / it tore in two / sewed it together; bell / ring it / its rope came off / tied on a new rope;
top / spin it / its tip broke / carved a new tip; flag / wave it / its stick broke / found a new stick;
hat / try it on / its brim tore / sewed the brim; cart / pull it / its wheel came off / put the wheel back on;
toy horse / ride it / its tail came off / glued the tail back on
sights:
butterfly; frog; snail; robin; lizard; beetle; ladybug; sparrow; cricket; moth; turtle; spider; bee; worm; crow;
caterpillar
spots:
under a bush; behind a rock; in the tall grass; under a bench; beside a stump; between two stones; behind a fence;
in a heap of leaves; at the foot of a tree; near a puddle; on top of a wall; in a hollow log
foods one:
berries / berry; apples / apple; pears / pear; plums / plum; nuts / nut; cherries / cherry; peaches / peach;
grapes / grape
furs: white; black; brown; grey; golden; spotted; striped; woolly
pets: kitten; puppy; lamb; duckling; chick; piglet
fears where went:
the dark / It fell into the dark cellar / went down the cellar steps, one by one;
deep water / It is on a stone in the river / stepped into the cold river;
thunder / It is out in the storm / ran out into the storm;
the big bull / It is asleep behind the big bull / walked past the big bull on tiptoe;
high places / It is stuck on the steep rocks / climbed up the rocks, inch by inch;
the old bridge / It is on the other side of the bridge / walked across the old bridge;
the swans / It is in the middle of the swans / walked straight through the swans;
the old barn / It is shut in the old barn / opened the door of the old barn
tasks done bad good:
water the beans / watered the beans / the beans were dry and brown / the beans stood tall and green;
feed the hens / fed the hens / the hens were hungry and cross / the hens were fat and happy;
shut the gate / shut the gate / the sheep were out on the road / the sheep were safe and sound;
watch the soup / watched the soup / the soup was burned and black / the soup was hot and good;
bring in the washing / brought in the washing / the washing lay in the mud / the washing was clean and dry;
fill the water jug / filled the water jug / the water jug was empty / the water jug was full;
sweep the steps / swept the steps / the steps were covered with mud / the steps were clean and white;
wash the cups / washed the cups / the cups stood in a sticky heap / the cups stood clean in a row
troubles help:
whose wagon was stuck in the mud / pushed the wagon until it came free;
who had dropped a sack of apples / picked up every apple; who had lost the way to town / showed the way to town;
who could not lift a heavy sack / took one end of the heavy sack;
whose donkey would not walk / led the donkey up the road;
who had lost a shoe in the mud / pulled the shoe out of the mud;
who was looking for a lost ring / found the ring in the grass; whose fence had come down / held the fence straight
buildings of advice heeded:
tower / stones / Put the big stones at the bottom / put the big stones at the bottom;
hut / branches / Tie the branches together / tied the branches together;
castle / sand / Use only wet sand / used only wet sand; raft / logs / Tie every log twice / tied every log twice;
bridge / boards / Use the thick boards / used the thick boards;
dam / sticks / Push the sticks in deep / pushed the sticks in deep;
fort / boxes / Fill the boxes with sand / filled the boxes with sand;
tent / blankets / Tie the blankets to a tree / tied the blankets to a tree
forces: goat; dog; sheep; cow; bull; pig; pony; goose
skills did fail:
swim / swam across the pond / swallowed half the pond;
ride a bicycle / rode around the whole village / landed in the grass;
juggle / kept three balls in the air / dropped every ball;
walk on stilts / walked all the way on stilts / fell over like a tree;
skip rope / skipped a hundred times / got caught in the rope;
stand on one hand / stood on one hand / tipped over at once;
play the fiddle / played a whole song on the fiddle / made the fiddle howl;
row a boat / rowed straight across the lake / went around in circles
seeds grew:
sunflower seed / a sunflower as tall as the door; bean / a bean plant as high as the roof;
pumpkin seed / a pumpkin as big as a chair; melon seed / a melon as round as the moon;
apple seed / an apple tree with soft leaves; carrot seed / a carrot as long as an arm;
acorn / an oak no taller than a cup; cherry stone / a cherry tree with white flowers
thieves: goose; hen; goat; crow; snail; donkey; beetle; sheep
""")

RULES = _titled("""
story:
<opening> One {sky=skies} {day=days} [morning|afternoon][| in [May|June|July|August|spring|summer|autumn]*3],
[<lost>*4|<share>*4|<fear>*4|<quarrel>*4|<promise>*4|<stranger>*4|<build>*3|<learn>*3|<seed>*3]
opening:
[[Once upon a time*3|Once*2|Long ago|Many years ago] there was a {trait=traits} <who> who lived in <house>*2
|In <house> lived a {trait=traits} <who>
|A {trait=traits} <who> lived in <house>*2
]. {hero.He} [had*2|owned|kept|had found|carried] a <look> {jewel_color=colors} {jewel=jewels}
and [loved*2|liked] {hobby=hobbies}.
who: [[{kind=girl}|{kind=kinds}] named {hero=girls}|[{kind=boy}|{kind=kinds}] named {hero=boys}]
house:
[a [small|white|cozy|tiny|crooked|wooden|narrow|round|red|yellow|dusty|quiet|pretty|little|sunny]*15|an old]
{house=houses} {home=homes}
friend: [{friend=friend_girls}|{friend=friend_boys}] the <beast> {friend_kind=friend_kinds}
elder: [{elder=elder_women}|{elder=elder_men}]
number: [two|three|four|five|six|seven|eight|nine|ten|twelve]
look: [little|big|new|lovely|funny|pretty|strange|fine|dusty|shiny|plain|small|bright|simple|neat|rare]
beast: [tiny|round|funny|sleepy|lovely|spotted|busy|noisy|quick|lazy|bold|friendly|hungry|young|merry|clumsy]
search: [high and low|here and there|behind every tree|under every leaf|in every corner|up and down]
fresh: [sweet|fresh|small|big|round|soft|fine|tasty|warm|lovely|tiny|pretty]
gladly: [gladly|warmly|brightly|cheerfully|kindly|at once|with a [big|small|warm|shy] smile|with a [laugh|nod|wink]]
softly:
[softly|quietly|slowly|gently|calmly|politely|clearly|shyly|quickly|in a [low|small|thin] voice|with a [sigh|nod|cough]]
angrily: [angrily|loudly|crossly|quickly|at once|with a [dark|long|cold] look|with [red|hot|burning] cheeks]
off: [sadly|slowly|quietly|in tears|without a word|with [wet|red] eyes|with [heavy|slow] feet|with a [deep|long] sigh]
urgently: [loudly|at once|from afar|with [wet|red|big|wide] eyes|with a [sob|gasp]|<number> times]
loudly: [loudly|warmly|gladly|for <number> minutes]
sadly: [sadly|softly|slowly|quietly|with a [deep|long|small] sigh|with [wet|red|big] eyes|in a [low|small|thin] voice]
lost:
{hero} [was playing*2|went out|was busy] with {hero.his} <look> {color=colors} {thing=things} {place=places.in}.
{hero.He} [saw*2|met|spotted|noticed] a <beast> {sight=sights}
[and followed it for <number> [steps|minutes]|and [stopped to*2|had to] [look|watch|laugh|say hello]].
When {hero.he} [turned around*2|looked up|came back], the {thing} [was gone*3|was nowhere to be seen|had disappeared].
"[Oh no|Oh dear|It was just here|It is gone|I have lost it|Come back|Help]!" {hero} [cried|said] <sadly>.
[<lost_together>*3|<lost_alone>*3|<lost_blame>*4|<lost_forever>*3]
lost_together:
<friend> [came running|came over|stopped]. "[I will help you*2|We will find it|Let us look together]," {friend.he}
said <gladly>. They looked <search>, and after <number> [minutes|hours] [{friend}|{hero}] found it {spot=spots}.
[The {sight} was [sitting|sleeping] [on top of it|beside it]! |]<happy_end>
lost_alone:
{hero.He} [sat down|closed {hero.his} eyes|stood still|counted to <number>] and thought <hard>.
[Step by step|Slowly|Bit by bit|Very carefully], {hero.he} [went|walked] back the way {hero.he} had come,
and there [was|lay] the {color} {thing}, {spot=spots}[!|, with the {sight} beside it!|.] <proud_end>
hard: [hard|for <number> [minutes|hours]|about the [morning|place|day]]
lost_blame:
<friend> [came by|was standing there|was playing nearby]. "[You took it|It was you|Give it back]!"
{hero} [said|shouted|cried] <angrily>. {friend} [shook {friend.his} head|turned red|looked hurt] and went home <off>.
<soon> {hero} found the {thing} {spot=spots}. {hero.He} ran to {friend}'s {door=colors} door.
"[I am sorry*2|Please forgive me]! [I should have looked first|I was wrong]," {hero.he} said <softly>. <lesson_end>
soon: [Two|Three|Four|Five|Six|Seven|Eight|Nine|Ten] [minutes*3|hours] later,
long: [Two|Three|Four|Five|Six|Seven|Eight|Nine|Ten] [days|weeks] later,
lost_forever:
{hero.He} looked <search> until [it was dark|the lamps were lit|{hero.his} feet hurt|<number> hours had gone by],
but the {color} {thing} [never turned up|was gone for good|was not there]. <sad_end>
share:
{hero} [set out for|went to|walked to] the {place=places} with a [basket|bag|bowl|box] of
<number> <fresh> {food=foods} and <number> <fresh> [buns|tarts|cookies|pancakes|muffins|rolls|cakes|pies].
[On the way|At the gate|Around the corner|Near a bench] {hero.he} met <friend>,
who [had nothing to eat|had lost {friend.his} lunch|was very hungry|looked hungry|had no lunch].
"[May I have one|Could I have one|Would you give me one], please?" {friend} asked <softly>.
[<share_kind>|<share_not>]
share_kind:
["[Take as many as you like|There is enough for two|Come and sit with me|Eat with me]," {hero} said <gladly>.
 They ate [until dark|in the shade|on the grass|side by side], and
 {friend} gave {hero.him} a <look> {color=colors} {thing=things}. <happy_end>
|{hero} had only one left and looked at it for [a while|a long time|<number> minutes]. It smelled so [good|sweet|fresh].
 Then {hero.he} gave the last {food.one} to {friend}. "[That was kind|You are a true friend|Thank you|How good you
 are]," {friend} said <gladly>. <proud_end>
]
share_not:
"No, [they are mine|I want them all]," said {hero}
[and ate every {food.one} [behind a tree|all alone|under a bench]. Soon {hero.his} [belly|stomach] hurt.
 It was {friend} who [brought|gave] {hero.him} [a cup|a bowl|a jug] of [tea|water|milk|soup].
 "[Next time|Tomorrow] I will share," {hero} said <softly>. <lesson_end>
|<angrily> and held the {food} tight. {friend} [went away|walked off|turned around] <off>.
 Now the {food} [tasted of nothing|did not taste good], and there was nobody to [play|talk|sing|laugh] with
 {place.in}. <sad_end>
]
fear:
<friend> came [running|hurrying|rushing] [to the door|up the path|down the road|over the hill].
"[Please help|Come quickly|Help]! My {fur=furs} {pet=pets} is in trouble. {fear=fears.where}!"
{friend.he} [cried|called] <urgently>.
{hero} [wanted to help|liked the {pet}], but {hero.he} was [always|so|terribly|very] afraid of {fear}.
[<fear_alone>|<fear_together>|<fear_hidden>|<fear_won>]
fear_alone:
[Still|Even so], {hero.he} [took <number> deep breaths|counted to <number>|made a fist] and {fear.went}.
<soon> {hero.he} was back with the {fur} {pet} [safe|warm|asleep|happy] in {hero.his} arms.
"[You are so brave|How brave you are]!" {friend} [said|cried] <gladly>. <proud_end>
fear_together:
"[Let us go together|I will hold your hand|We can sing on the way]," {friend} said <softly>.
[Hand in hand|Side by side|With a song|Step by step] they {fear.went}. There sat the {fur} {pet}, [tired|wet|dusty] but
[safe|well|happy], and [jumped|ran] [right|back|straight] into {friend}'s arms. <happy_end>
fear_hidden:
"I [have no time|must go home|feel ill]," {hero.he} said <softly>.
[So*2|Then] {friend} went alone and [brought|carried|led] the {pet} home. <soon> {hero} told the truth. "I was afraid."
"[Everyone is afraid of something|So was I|You could have told me|Next time, just say so]," {friend}
said <gladly>. <lesson_end>
fear_won:
{hero.His} [knees|legs|hands] [shook|felt weak], and {hero.he} [stayed at home|hid behind the door|could not move].
{friend} went [alone|without help] and [saved|found] the {fur} {pet}, but {friend.he} did not
[smile|wave|say a word|stop] on the way back. <sad_end>
quarrel:
{hero} and {hero.his} friend <friend> [found|saw] a <look> {color=colors} {thing=things} {place=places.in}.
"[I want to {thing.play}|Let me {thing.play} first|I saw it first]!" {hero} [said|cried|shouted] <angrily>.
"No, [it is mine|I am first|me]!" {friend} [said|cried|shouted] <angrily>.
They pulled [<number> times|this way and that|and pulled] until {thing.broke}.
[[Then|Now] both [were very quiet|stood still]. "I am sorry," they said [at the same time|together|<softly>].
 [Side by side|With a little glue|That same {day}] they {thing.mended} and [took turns|shared it]
 [all day|until dark|for <number> days]. <happy_end>
|"[I will make it good again|Let me try to mend it]," {hero} said <softly>.
 {hero.He} worked for <number> [hours|days] and {thing.mended}. {friend} [clapped|cheered|laughed] <loudly>. <proud_end>
|"[That is your fault|Look what you did|Go away]!" {hero} [said|shouted] <angrily>, and {friend} went home <off>.
 But it was [no fun|sad|lonely] to be alone with the {color} {thing}.
 So {hero} [knocked at|ran to] {friend}'s {door=colors} door. "A friend is worth more than a {thing}," {hero.he}
 said. <lesson_end>
|{friend} [went|walked|ran] one way <off>, and {hero} [went|walked|ran] the other way. Nobody said [sorry|a kind word].
 The {color} {thing} [stayed|was left|lay] {place.in}, [in two pieces|all alone]. <sad_end>
]
promise:
{hero} promised <elder> to {task=tasks} [at once|before dark|with care|by evening].
<soon> <friend> called [over the fence|from the road|through the window]:
"[Come and play|Meet me|Let us play] {place=places.in}!"
["[Not yet|Later]," {hero} said <softly>. "[I made a promise|I gave my word]." {hero.He} {task.done}
 [with care|first|<gladly>]. When {elder} came home, {task.good}. <proud_end>
|"[First*2|But first|Wait,] I must {task}," {hero} said <softly>. "[Then I will help you|Two are faster than one],"
 {friend} said <gladly>.
 [Together|Side by side|With a song] they {task.done}, and then they [ran|raced|went] to the {place}. <happy_end>
|{hero} [forgot the promise|did not think twice] and [ran|went] along.
 They played with a <look> {color=colors} {thing=things} and <number> <look>
 [balls|dolls|boats|drums|tops|flags|kites|hats] for [two|three|four|five|six] hours.
 When {hero.he} came home, {task.bad}. <broken>*2
]
broken:
["[I forgot my promise|I broke my word]. I am sorry," {hero.he} said <softly>.
 "[Thank you for telling the truth|It is good that you tell me]," {elder} said <gladly>. <lesson_end>
|"[That was not me|It is not my fault]," {hero.he} said <angrily>.
 {elder} [said nothing|only shook {elder.his} head|gave {hero.him} a long look] and
 [went inside|walked away] [sadly|slowly|quietly|with a [deep|long] sigh|without a word]. <sad_end>
]
stranger:
{hero} met {stranger=strangers.a} in a <look> {coat_color=colors} {coat=coats}, {trouble=troubles}.
"[Could you help me|Would you lend me a hand|Have you a moment], [little|young|dear|good] {kind}?"
the {stranger} asked <softly>.
["[Of course|Yes|With pleasure]," {hero} said <gladly>. {hero.He} {trouble.help},
 and the {stranger} gave {hero.him} a <look> {color=colors} {thing=things}. <happy_end>
|{hero} was [late|tired|hungry|busy], but {hero.he} {trouble.help} and wanted [nothing|no money|no present] for it.
 "[You have a good heart|I will not forget you]," the {stranger} said <gladly>. <proud_end>
|"[I have no time|I am in a hurry]," {hero} said <angrily> and [walked on|went by]. After <number> [steps|minutes]
 [{hero.he} [tripped over a [root|log]|slipped on a [stone|leaf]] and hurt {hero.his} [foot|knee|arm|leg|hand].
  [Who came and helped|Who carried {hero.him} home|Who was the first to help]? The {stranger} in the {coat_color}
  {coat}! <lesson_end>
 |{hero.he} turned back, but [the road was empty|there was nobody there|it was too late].
  Only the {coat_color} {coat} [lay|was left] [in the grass|on a stone|in the mud]. <sad_end>
 ]*2
]
build:
{hero} [began|wanted|tried] to build a <look> {building=buildings} of {building.of}
[by the brook|near the pond|down by the river|behind the {house}].
"{building.advice}," <elder> said <softly>.
[{hero} [listened|nodded] and {building.heeded}. It took <number> [hours|days].
 Then a <beast> {force=forces} [ran|bumped|walked] into it, but the {building}
 [stood firm|held|did not move]. <proud_end>
|But {hero} [was in a hurry|did not listen]. After <number> [minutes|hours] a <beast> {force=forces}
 [ran|bumped|walked] into it, and
 [the {building} fell apart|down came the {building}|soon there was only a heap of {building.of}].
 ["{elder} was right," {hero} said <softly>. Then {hero.he} began again and {building.heeded}. <lesson_end>
 |<friend> [saw it|came by] and brought <number> [bags|boxes|carts] of {building.of}.
  [Together|Side by side|With a song] they built a new {building}, [bigger|better|stronger] than the first. <happy_end>
 |{hero} gave the {building.of} <number> kicks and went away <off>.
  [Nobody [ever ]finished the {building}|The {building} was never finished]. <sad_end>
 ]*3
]
learn:
{hero} wanted to learn to {skill=skills}.
{n=numbers.capital} times {hero.he} tried, and {n} times {hero.he} {skill.fail}.
[Two|Three|Four|Five|Six|Seven] [dogs|cows|hens|sheep|goats|ducks] [watched|laughed|walked by].
[But {hero} [practiced|tried again] [every day|every {day}|day and night],
 and after <number> [days|weeks] {hero.he} {skill.did}. <proud_end>
|"[Let me show you|I will teach you]," <friend> said <gladly>. They [practiced|tried] for <number> [hours|days],
 and [at last|then] {hero} {skill.did}. {friend} [clapped|cheered|laughed] <loudly>. <happy_end>
|"I can do it [better than anyone|with my eyes closed]," {hero} told <friend>. "Show me," {friend} said <softly>.
 {hero} {skill.fail} again. "I [was bragging|told a lie]," {hero.he} said <sadly>. "Will you help me?" <lesson_end>
|"I will never learn it," {hero} said <sadly> and gave up.
 <long> <friend> {skill.did}, and {hero} could only [watch|stare|sigh|look on]. <sad_end>
]
seed:
{hero} planted {seed=seeds.a} in a <look> {color=colors} [pot|box|bowl|bucket] [behind|next to|in front of] the {house}.
"[Be patient|It needs water and time|Now we must wait]," <elder> said <softly>.
[For <number> weeks {hero.he} [watered it|brought it water] every [day|{day}|morning|evening].
 Then there stood {seed.grew}! "[You did that|Well done]," {elder} said <gladly>. <proud_end>
|<friend> [came by to help|helped to water it|chased away the birds] every [day|{day}|morning|evening].
 <long> there stood {seed.grew}, and they [danced|sang|laughed] <loudly>. <happy_end>
|But {hero} [could not wait|had no patience|did not listen]. <long> {hero.he} dug up the {seed} to
 [look at|talk to|wash] it, and so it never grew. {elder} gave {hero.him} <number> more.
 "[This time I will wait|Now I will leave them alone]," {hero} said <softly>. <lesson_end>
|<long> a [tiny|thin|pale|bright] green leaf came up. Then a <beast> {thief=thieves} ate it in <number> bites.
 Only a [small|round|deep] hole [was left|remained]. <sad_end>
]
happy_end:
#happy[That evening {sky.later}, and {hero} was as happy as a [lark|king|queen|bee|fish|bird]
|{hero} was so [happy|glad|merry|full of joy] that {hero.he} {hobby.did}*2
|It was the [happiest|best|merriest|loveliest] {day} of the [month|year|summer]
|{hero} [held|rubbed|kissed] the {jewel_color} {jewel} and laughed [for joy|happily]
|{hero} [walked|skipped|hopped|danced] home to the {house} {home} with a [happy|glad|light|merry] heart
|"What a [happy|lovely|wonderful|fine] {day}!" said {hero} and {hobby.did}
][.*3|!]
proud_end:
#proud[That evening {sky.later}, and the {trait} {kind} felt as [tall|strong|big] as a [tree|tower|giant|house|bull]
|{hero} was [proud*2|so proud|very proud] [all evening|for <number> days|that {day}]*2
|{hero} [held|rubbed] the {jewel_color} {jewel} and [felt|was] [very ||so ]proud
|{hero} [stood|walked] a little taller after that {day}
|In the {house} {home}, a proud {kind} {hobby.did}
|"[Look at me|Hurrah|Who would have thought it]!" said {hero} and {hobby.did}
][.*3|!]
lesson_end:
#lesson[That evening {sky.later}, and {hero} promised to do better [next time|the next {day}|from then on]
|{hero} [never forgot|always remembered] what {hero.he} had learned that {day}*2
|From then on, the {trait} {kind} [thought first and spoke later|was a little wiser|took more care]
|Back in the {house} {home}, {hero} [thought about it|wrote it down] [for <number> minutes|that night]
|{hero} looked at the {jewel_color} {jewel} and promised to [do better|think first|take more care]
|And so the {trait} {kind} learned [something|a good lesson] that {day}
].
sad_end:
#sad[That evening {sky.later}, and {hero} [sat alone|lay awake|cried] for <number> [minutes|hours]
|There was no {hobby} in the {house} {home} that [night|evening|{day}]*2
|{hero} did not feel like {hobby} [for <number> days|that evening|anymore]
|{hero} [held|rubbed] the {jewel_color} {jewel} and went home <off>
|"Tomorrow is another day," said {hero}, but {hero.his} heart was [heavy|sad]
].
""")
